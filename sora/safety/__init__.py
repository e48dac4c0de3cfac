"""Where videos come from and what may be done with them: the claims of origin that files carry."""
