"""Service managers: a working configuration for each, and how to have one start or upgrade a service.

A module here that is named after a service manager has ``files(plan)``: what it must be given, and where it looks for that.
"""
