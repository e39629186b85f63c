"""Engine environments: what to install (`table`, `choosing`), and what is there (`shelf`)."""
