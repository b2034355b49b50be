"""Keeps all that a person runs on Binder within the two gigabytes that it grants."""

c = get_config()  # noqa: F821
c.EngineSupervisor.low_memory = True
c.EngineSupervisor.microbatch_tokens = 128
c.EngineSupervisor.sampling_cache_mb = 128
