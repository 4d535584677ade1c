"""The tag library ``moe_personalize`` for templates. It also logs a missing payload variable."""
