"""The maths of the models: tensors in, tensors out.

Nothing here opens a file, knows text or pictures, samples, or moves itself to a device. Caches and masks are arguments.
"""
