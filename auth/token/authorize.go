package token

// AuthorizeFunction returns nil if the token lets its bearer call the function, and otherwise an
// *Error with status 403.
//
// A token that names scopes must name ScopeFunction. One that names none is judged by its claim
// "function" alone: stock OpenFaaS puts no scope into the tokens it issues, and that claim is the one
// its watchdog looks at.
func AuthorizeFunction(claims *Claims, namespace, name string) error {
	if claims.Scope != "" && !claims.HasScope(ScopeFunction) {
		return errFunctionScope
	}
	if !claims.Function.Allow(namespace, name) {
		return errNotCallable
	}
	return nil
}

// AuthorizeSystem returns nil if the token's bearer is an administrator, and otherwise an *Error with
// status 403. Nobody is one by leaving the scope out.
func AuthorizeSystem(claims *Claims) error {
	if !claims.HasScope(ScopeSystem) {
		return errSystemScope
	}
	return nil
}
