"""An app with a page of experience blocks, for test_wagtail_blocks.py."""
