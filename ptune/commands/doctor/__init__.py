"""`ptune doctor`: facts about machine and model, and checks of them."""
