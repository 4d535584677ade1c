"""Sites made of third-party packages. Each module starts a site of its own in a child process or in this process."""
