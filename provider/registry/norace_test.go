//go:build !race

package registry

const raceSlowdown = 1
