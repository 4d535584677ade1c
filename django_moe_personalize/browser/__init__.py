"""The HTML that scripts in the browser read: islands, the state of a page, and the identity for MoEngage's Web SDK."""
