"""What a user deploys: a static truncation, a halting model, and the comparison of the two."""
