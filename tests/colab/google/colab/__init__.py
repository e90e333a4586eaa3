"""Stands in for the module that only Colab's kernel holds."""
