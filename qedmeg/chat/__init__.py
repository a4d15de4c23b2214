"""Language models behind OpenAI-compatible servers: asked again when something goes wrong, each request accounted."""
