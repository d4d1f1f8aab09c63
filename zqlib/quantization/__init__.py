"""From a float model to an integer program: fold, calibrate, lower."""
