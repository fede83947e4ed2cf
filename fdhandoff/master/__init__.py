"""The master: the process of stable PID that owns listeners and generations, and replaces one by the next."""
