"""What models learn from and are asked: samples, where they come from, and the tokens and labels that become of them."""
