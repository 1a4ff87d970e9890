"""LightningModules: how a model trains, measures itself and is kept in checkpoints."""
