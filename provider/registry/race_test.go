//go:build race

package registry

// raceSlowdown is about what the race detector costs code that decodes JSON.
const raceSlowdown = 8
