def profile(d): return ""
