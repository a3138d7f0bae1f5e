import nbformat,statistics,ast,collections,re
nb=nbformat.read("/work/wt-nb05/notebooks/05_hybrid_head_replacement.ipynb",4)
c=[x for x in nb.cells if x.cell_type=="code"]; l=[len(x.source.splitlines()) for x in c]
print(len(nb.cells),len(c),"md/code",(len(nb.cells)-len(c))/len(c),"median",statistics.median(l),max(l),sorted(l))
print([ (x.id,ln) for x in c for ln in x.source.splitlines() if len(ln)>99])
where=collections.defaultdict(set)
for x in c:
    if "install" in x.metadata.get("tags",[]): continue
    tree=ast.parse(x.source)
    class V(ast.NodeVisitor):
        def visit_FunctionDef(s,n): where[n.name].add(x.id)
        def visit_Lambda(s,n): pass
        def visit_ListComp(s,n): pass
        visit_SetComp=visit_DictComp=visit_GeneratorExp=visit_ListComp
        def visit_Name(s,n):
            if isinstance(n.ctx,ast.Store): where[n.id].add(x.id)
    V().visit(tree)
print({k:v for k,v in where.items() if len(v)>1})
for x in nb.cells:
    if x.cell_type=="markdown": 
        f=set(re.findall(r"L\d+H\d+",x.source)); 
        if f: print("named", x.id,f)
