"""The nets of the official FCN release, one file each, and the classifiers they start from."""
