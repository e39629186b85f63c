"""Which engine runs which model how, and why. Pure: values in, values out."""
