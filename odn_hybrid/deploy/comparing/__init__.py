"""Full, static and dynamic models side by side on this device."""
