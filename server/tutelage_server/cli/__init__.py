"""`tutelage serve`, and the commands that call a server."""
