"""How pixels become crops: decoding, the store, kernels, the cut, augmentation."""
