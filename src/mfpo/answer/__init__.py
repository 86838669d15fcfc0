"""Questions about images to answers: local models, vLLM or an endpoint; greedily, or by VCD or OPERA."""
