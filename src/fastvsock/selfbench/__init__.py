"""The measure behind `fastvsock bench`: splice against copy on this machine, or through a real VM."""
