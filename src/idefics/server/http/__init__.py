"""How requests come in: connections, keys, bodies, routes, events."""
