"""A trained model as a folder for users, and the card that says how it was made."""
