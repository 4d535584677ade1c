"""The template tags: the library ``moe_personalize``, which also logs a missing payload variable."""
