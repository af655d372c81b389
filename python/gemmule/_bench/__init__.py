"""`gemmule bench`: speed, memory and quality of model files, with their errors, in formats others read."""
