from hypothesis import settings

# A busy machine is no fault of the code: no example has a deadline of its own.
settings.register_profile("core", deadline=None, max_examples=150)
settings.load_profile("core")
