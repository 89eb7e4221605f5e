#!/bin/sh
# Installs the packages that a packages.txt names, one a line: Debian's r-cran-NAME where there is one,
# since it is compiled already, and the rest from CRAN. CRAN_MIRROR says from where.
set -eu
list=$1
names=$(sed -e 's/#.*//' "$list" | tr -d ' \t\r' | grep -v '^$' || true)
[ -n "$names" ] || exit 0

for name in $names; do
  case $name in
  *[!A-Za-z0-9.]* | [!A-Za-z]*)
    echo "packages.txt: \"$name\" is not the name of a package: one name a line" >&2
    exit 1
    ;;
  esac
done

missing() {
  # shellcheck disable=SC2086 # names have no spaces
  Rscript -e 'for (name in commandArgs(TRUE)) if (!nzchar(system.file(package = name))) cat(name, "\n")' $1
}

wanted=$(missing "$names")
[ -n "$wanted" ] || exit 0
apt-get update -qy
debian=
for name in $wanted; do
  package=r-cran-$(echo "$name" | tr '[:upper:]' '[:lower:]')
  if apt-cache show "$package" >/dev/null 2>&1; then
    debian="$debian $package"
  fi
done
if [ -n "$debian" ]; then
  # shellcheck disable=SC2086
  apt-get install -qy --no-install-recommends $debian
fi
rm -rf /var/lib/apt/lists/*

wanted=$(missing "$names")
if [ -n "$wanted" ]; then
  echo "from CRAN: $wanted"
  # install.packages only warns of what it could not do, so what is there is looked at afterwards.
  # shellcheck disable=SC2086
  Rscript -e 'install.packages(commandArgs(TRUE), repos = Sys.getenv("CRAN_MIRROR"), Ncpus = parallel::detectCores())' $wanted
fi
wanted=$(missing "$names")
if [ -n "$wanted" ]; then
  echo "packages.txt names what could not be installed: $wanted" >&2
  echo "one that has to be compiled may need the build option dev, or its libraries in ADDITIONAL_PACKAGE" >&2
  exit 1
fi
