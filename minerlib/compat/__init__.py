"""Drop-in classes and functions for code written against other libraries."""
