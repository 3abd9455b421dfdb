"""What a run would do and cost, seen on a sample before any compute."""
