"""One model over several devices, arranged from outside: the model's code knows of one device."""
