"""What the tables have been."""
