// Package build says which build of the project a program is.
package build

import "runtime/debug"

// Version is the release that the build was given (-ldflags "-X main.release=v1.2.3"), or else the commit that
// the program was built from.
func Version(release string) string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return "dev-" + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return "dev"
}
