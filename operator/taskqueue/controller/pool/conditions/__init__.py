"""The conditions of a TaskQueue about its workers, one module each; pure."""
