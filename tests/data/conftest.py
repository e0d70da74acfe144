from hypothesis import settings

# A busy machine is not a bug: examples have no time limit of their own.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
