"""The wheels: how they are built, and how each is proved before it is shipped. See README.md beside this file."""
