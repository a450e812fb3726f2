"""A chat model over HTTP: requests, replies, and what somebody else wrote read strictly."""
