"""Real supervisors, and what they make of a service that replaces itself."""
