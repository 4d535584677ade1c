"""The commands: ``moe_doctor``, ``moe_deliver``, ``moe_erase`` and ``moe_sandbox``."""
