"""Why a training fails: checks of data, network and optimisation, and cures that are measured."""
