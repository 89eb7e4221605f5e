package backend

import (
	"fmt"

	"github.com/openfaas/faas-provider/types"
)

// AccessAnnotation says who may call a function: AccessToken or AccessOpen. Without it the provider's
// own setting counts.
const AccessAnnotation = "faas-predict.auth"

// Values of AccessAnnotation.
const (
	AccessToken = "token" // only who has a bearer token for it
	AccessOpen  = "none"  // everyone
)

// CheckAccess refuses any other value: a function that was meant to be closed must not be open for a
// typing mistake.
func CheckAccess(spec *types.FunctionDeployment) error {
	if spec.Annotations == nil {
		return nil
	}
	switch value, given := (*spec.Annotations)[AccessAnnotation]; {
	case !given, value == AccessToken, value == AccessOpen:
		return nil
	default:
		return fmt.Errorf("%w annotation %s: %.40q is neither %s nor %s", ErrInvalid, AccessAnnotation, value, AccessToken, AccessOpen)
	}
}
