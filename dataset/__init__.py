"""Everything between the downloaded pictures and a training batch; the stage 1 scripts live here."""
