package issuer

const crashDir = "ISSUER_CRASH_DIR"

func operate() {}
