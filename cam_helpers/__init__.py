"""Data, models and methods of the tutorial: what does a convolutional network look at?"""
