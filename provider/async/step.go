package async

// step is called between any two changes, with what was just done. Tests kill the process there; otherwise it
// does nothing.
var step = func(string) {}
