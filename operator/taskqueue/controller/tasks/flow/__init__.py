"""What a TaskQueue with spec.flow does beside priority and age: shares, rates, limits. Pure."""
