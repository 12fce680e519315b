document.querySelectorAll("svg[data-hover]").forEach(function(svg){
var h=JSON.parse(svg.dataset.hover),box=svg.parentNode,tip,at,n=h.at.length,v=svg.viewBox.baseVal;
function off(){if(tip){tip.remove();at.remove();tip=at=null}}
svg.addEventListener("pointerleave",off);
svg.addEventListener("pointermove",function(e){
var r=svg.getBoundingClientRect(),k=r.width/v.width,x=(e.clientX-r.left)/k;
if(!n||x<h.l||x>h.r){off();return}
var i=Math.min(n-1,Math.floor((x-h.l)/(h.r-h.l)*n)),s=n>1?h.l+(h.r-h.l)*(i+.5)/n:x;
if(!tip){tip=document.createElement("div");tip.className="tip";at=document.createElement("div");at.className="at";box.append(at,tip)}
tip.textContent="";[h.at[i]].concat(h.rows.map(function(o){return o[0]+": "+o[1][i]})).forEach(function(t){var d=document.createElement("div");d.textContent=t;tip.append(d)});
at.style.left=s*k+"px";at.style.top=h.t*k+"px";at.style.height=(h.b-h.t)*k+"px";
tip.style.top=h.t*k+4+"px";if(s*k>r.width/2){tip.style.left="auto";tip.style.right=r.width-s*k+8+"px"}else{tip.style.right="auto";tip.style.left=s*k+8+"px"}
})});
