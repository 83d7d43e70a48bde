"""The interfaces of other libraries over this one: scripts that were written for them go on."""
